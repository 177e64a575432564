"""One Transformer for every stage of the lab: configuration, layers, weights in and out, and what a shape costs."""
