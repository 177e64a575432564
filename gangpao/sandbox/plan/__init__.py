"""From finished experiments and a budget to the recipe of a large run, and from that run back to the prediction."""
