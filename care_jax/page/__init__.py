"""The report page: what it reads from run folders, and its charts."""
