"""Style, SVG, tables and templates of all pages and figures. Imports no torch."""
