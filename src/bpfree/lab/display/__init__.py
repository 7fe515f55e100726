"""What a terminal shows: runs as they go on, and the table at their end."""
