-- An upload is known by what its writer calls it. That is not the id of the image: a capture that was cut off goes on as another upload.
ALTER TABLE uploads RENAME COLUMN image_id TO upload_id;
