"""The walk back: an algebra is carried from the loss to the leaves, and winners are kept."""
