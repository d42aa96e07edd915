"""A model behind a page or an API: who is next, what is loaded, and what runs beside it."""
