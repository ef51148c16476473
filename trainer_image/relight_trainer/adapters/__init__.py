"""Relight for trainers that have a loop of their own: nothing here is imported unless the trainer is.

    adapters.lightning       RelightCallback for Lightning
    adapters.transformers    RelightCallback for the Trainer of Hugging Face
    adapters.timm            RelightSaver, in the shape of timm's CheckpointSaver

All do nothing outside a job.
"""
