"""What requests cost: records of each request, the journal they are appended to, what posts them, and budgets.

Knows no HTTP and no SQL: `storage` declares what a database must do, and `books.store` does it.
"""
