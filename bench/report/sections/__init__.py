"""The report's tables, one module a subject: each function takes records and returns sections."""
