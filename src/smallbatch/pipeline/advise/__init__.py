"""Finds a batch size and a learning rate for a user's own model and images within a budget.

`advise` goes through the steps calibrate, bracket, race and final; each is a module here. What they
train are columns like any other, with records, files and runs in MLflow.
"""
