"""Training data as a profile: the length of every sample, the worst batch that can be drawn, batches that stand for all."""
