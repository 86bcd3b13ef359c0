"""What experiments share: runs that are kept, tables, pictures and expected numbers."""
