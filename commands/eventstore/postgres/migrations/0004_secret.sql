-- What the relay says on the log is signed with the secret, see Secret. A dump that is restored has it too.
ALTER TABLE store ADD COLUMN secret uuid NOT NULL DEFAULT gen_random_uuid();
