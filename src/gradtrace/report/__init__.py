"""What a person reads: terminal reports."""
