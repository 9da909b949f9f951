"""What a forward pass did: operator calls, the values between them, and where each ran."""
