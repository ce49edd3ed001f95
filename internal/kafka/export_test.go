package kafka

// LeaderChanges exports leaderChanges, for errors that brokers rarely return.
var LeaderChanges = leaderChanges
