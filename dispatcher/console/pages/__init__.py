"""The console's pages: rendered here, usable with nothing but HTML; scripts only add comfort.

One module a page. Each has handlers that ask the services, and a template that shows what was told; what is shown is
escaped by the template engine, always.
"""

from dispatcher.console.pages.assembly import add_to

__all__ = ["add_to"]
