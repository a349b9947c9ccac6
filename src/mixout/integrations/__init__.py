"""Adapters to trainers: one file each, imported only by who needs it."""
