"""What several test files share; on the path as ``support``."""
