mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }

}

mock_provider "aws" {
  alias = "replica"
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::hardcase-prod-replica" }
  }
}

override_resource {
  target = aws_iam_role.replication
  values = { arn = "arn:aws:iam::123456789012:role/mocked" }
}

variables {
  bucket      = "hardcase-prod"
  kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
}

run "the_bucket_keeps_what_it_is_given" {
  assert {
    condition     = aws_s3_bucket.data.object_lock_enabled && !aws_s3_bucket.data.force_destroy
    error_message = "Dossiers can be locked, and nothing is destroyed by the way."
  }
  assert {
    condition     = alltrue([for each in [aws_s3_bucket_versioning.data, aws_s3_bucket_versioning.access_logs] : each.versioning_configuration[0].status == "Enabled"])
    error_message = "What is overwritten can be brought back."
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.data.rule).apply_server_side_encryption_by_default).kms_master_key_id == var.kms_key_arn
    error_message = "Encrypted by our key."
  }
  assert {
    condition = alltrue([
      for each in [aws_s3_bucket_public_access_block.data, aws_s3_bucket_public_access_block.access_logs] :
      each.block_public_acls && each.block_public_policy && each.ignore_public_acls && each.restrict_public_buckets
    ])
    error_message = "Closed to the public."
  }
  assert {
    condition     = aws_s3_bucket_logging.data.target_bucket == aws_s3_bucket.access_logs.id
    error_message = "Accesses are logged."
  }
  assert {
    condition     = alltrue([for rule in aws_s3_bucket_lifecycle_configuration.data.rule : length(rule.expiration) == 0 || contains(["kfp/", "airflow-logs/"], rule.filter[0].prefix)])
    error_message = "What is current in the store or of MLflow never expires."
  }
  assert {
    condition     = length(aws_s3_bucket.replica) == 0 && output.replica == null
    error_message = "No copy unless asked for."
  }
  assert {
    condition     = output.store == "s3://hardcase-prod/main"
    error_message = "The store of infra/kubernetes."
  }
}

run "a_copy_on_request" {
  variables {
    replicate = true
  }
  assert {
    condition     = aws_s3_bucket.replica["copy"].bucket == "hardcase-prod-replica" && aws_s3_bucket.replica["copy"].object_lock_enabled
    error_message = "Locked as the first is."
  }
  assert {
    condition     = alltrue([for rule in aws_s3_bucket_replication_configuration.data["copy"].rule : rule.status == "Enabled" && rule.delete_marker_replication[0].status == "Disabled"])
    error_message = "Deletions are not copied."
  }
  assert {
    condition     = toset([for rule in aws_s3_bucket_replication_configuration.data["copy"].rule : rule.filter[0].prefix]) == toset(["main/", "mlflow/"])
    error_message = "The store and MLflow's files."
  }
}

run "a_name_with_dots_is_refused" {
  command = plan
  variables {
    bucket = "hardcase.prod"
  }
  expect_failures = [var.bucket]
}

run "logs_of_a_week_are_refused" {
  command = plan
  variables {
    log_days = 7
  }
  expect_failures = [var.log_days]
}
