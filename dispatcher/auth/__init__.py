"""Authentication of requests: JWTs that we sign or fetch, and Standard Webhooks signatures.

This package has neither a clock nor a network. Time is an argument, and a token endpoint is reached through the
`TokenEndpoint` that the service passes in, so the egress guard checks token endpoints too.
"""
