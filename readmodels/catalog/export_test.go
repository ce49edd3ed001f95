package catalog

// The tokens of pages, for tests.
var (
	PageToken      = pageToken
	ParsePageToken = parsePageToken
)
