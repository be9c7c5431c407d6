"""The algorithms: optimizers, projections, losses and metrics."""
