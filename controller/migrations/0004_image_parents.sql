-- Of a delta image: the root of the image that it is the difference to, if that is known.
ALTER TABLE images ADD COLUMN parent_root TEXT;
UPDATE images SET parent_root = (
    SELECT base.root FROM jobs JOIN images AS base ON base.url = json_extract(jobs.options, '$.options.base')
    WHERE jobs.id = images.job_id AND jobs.action = 'capture'
);
