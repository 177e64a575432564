"""What mixes the tokens of a layer: attention over a cache, or Gated DeltaNet over a state; and the states of texts."""
