"""Reading and writing vectors safely: everything this package stores goes through here."""
