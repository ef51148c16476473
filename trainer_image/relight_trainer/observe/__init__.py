"""Seeing what a training does: curves, pictures, machines, time and memory. Nothing is paid for what is off."""
