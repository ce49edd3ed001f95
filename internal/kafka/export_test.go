package kafka

// LeaderChanges lets tests sort errors that brokers rarely answer.
var LeaderChanges = leaderChanges
