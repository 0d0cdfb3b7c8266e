-- A restore whose plan somebody is to approve: NULL, or how far that is ('wanted', 'asked', 'given', 'used'), and the plan that the
-- agent made, as JSON.
ALTER TABLE jobs ADD COLUMN approval TEXT;
ALTER TABLE jobs ADD COLUMN plan TEXT;
