"""What proves to an endpoint who is calling: JWTs signed by us or fetched, and Standard Webhooks signatures.

No clock and no network in here: time comes in as an argument, and a token endpoint is reached through the
`TokenEndpoint` that the service hands over, so that the egress guard stands before it too.
"""
