"""The schema's history: one module in `versions` for each step, up and down. Run by `dispatcher.stores.sql.migrate`."""
