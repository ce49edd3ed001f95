package postgres

// OpenWithin is like Open, with another limit for the silence of a statement.
var OpenWithin = open
