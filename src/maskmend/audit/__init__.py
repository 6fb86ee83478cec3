"""Which masks are wrong, where, and how."""
