"""What Prefect's server was told, however much that is: it answers with 200 at a time."""


async def every(read, **filters):
    """All pages of what one of the client's methods reads."""
    found = []
    while page := await read(**filters, offset=len(found)):
        found += page
    return found
