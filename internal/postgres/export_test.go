package postgres

// OpenWithin is Open with a limit of its own for the silence of a statement.
var OpenWithin = open
