"""uvicorn for production: deadlines and limits for each connection, and the short door of POST /predict."""
