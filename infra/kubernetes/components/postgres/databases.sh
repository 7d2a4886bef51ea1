#!/bin/sh
# Sourced once by the image, on an empty volume: a database and its owner each for MLflow and Airflow.
set -e
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" <<'SQL'
\set mlflow `cat /var/run/secrets/postgres/mlflow`
\set airflow `cat /var/run/secrets/postgres/airflow`
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE mlflow OWNER mlflow;
CREATE ROLE airflow LOGIN PASSWORD :'airflow';
CREATE DATABASE airflow OWNER airflow;
SQL
