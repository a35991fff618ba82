"""The console's pages: rendered on the server and usable without scripts, which only add comfort.

Each page is a module with handlers, which query the services, and a template. The template engine escapes all values.
"""
