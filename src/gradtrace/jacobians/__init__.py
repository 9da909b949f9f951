"""What an operator does to small changes: structures of local Jacobians, and the rules that state them."""
