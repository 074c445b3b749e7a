"""What every page and figure of the project is made of: style, SVG, tables, templates. Imports no torch."""
