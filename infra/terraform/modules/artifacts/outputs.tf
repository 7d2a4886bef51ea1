output "bucket" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.data.bucket
}

output "bucket_arn" {
  description = "The bucket."
  value       = aws_s3_bucket.data.arn
}

output "store" {
  description = "The store, as HARDCASE_STORE names it."
  value       = "s3://${aws_s3_bucket.data.bucket}/main"
}

output "replica" {
  description = "Name of the copy's bucket, if there is one."
  value       = one([for bucket in aws_s3_bucket.replica : bucket.bucket])
}
