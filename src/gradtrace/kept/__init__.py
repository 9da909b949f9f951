"""A trace as a file, without its tape: what tables, paths, flows and reports read, and nothing that runs."""
