output "bucket" {
  description = "Bucket, for terraform init -backend-config=bucket=…"
  value       = aws_s3_bucket.this.bucket
}
