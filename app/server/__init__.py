"""uvicorn for production: deadlines and limits for each connection, and a short way for POST /predict."""
