"""What makes the site: pictures, tables from the code, pages from elsewhere in the repository."""
