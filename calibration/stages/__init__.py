"""What each stage does, as pure functions over the store."""
