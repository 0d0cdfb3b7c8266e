-- What a repeated request is compared with was a plain hash of a body that may hold passwords: whoever had the database could have tried
-- guesses. It is keyed now, and what there was of it goes. A request that is repeated across this change makes a job of its own.
DELETE FROM idempotency_keys;
