"""Serving of predictors over HTTP, for every task by its `Task` and `Predictor` alone."""
