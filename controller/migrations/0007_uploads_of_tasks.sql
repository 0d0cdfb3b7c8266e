-- A file that a task of the controller writes: it ends with the controller, which then removes what there is of it.
ALTER TABLE uploads ADD COLUMN of_task INTEGER NOT NULL DEFAULT 0;
