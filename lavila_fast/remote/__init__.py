"""Files that lie elsewhere: in object storage and on web servers, by their URLs.

`path.RemotePath` stands where a `Path` would and is read like one. `blocks` fetches ranges ahead of whoever reads,
`stores` knows the services, `faults` which of their errors pass, `urls` what of a URL may be written down.
"""
