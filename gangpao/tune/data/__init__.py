"""From files of rows to batches for tuning: what the rows hold, how they are shown to the model, what is learned of them."""
