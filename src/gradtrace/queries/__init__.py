"""What is read off backpointers: paths, sets of components, influence, flow."""
