output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "cidr" {
  description = "Its range, as places.yaml names it."
  value       = aws_vpc.this.cidr_block
}

output "private_subnet_ids" {
  description = "Subnets of nodes and pods, by zone."
  value       = { for zone, subnet in aws_subnet.private : zone => subnet.id }
}

output "intra_subnet_ids" {
  description = "Subnets without a way out, by zone."
  value       = { for zone, subnet in aws_subnet.intra : zone => subnet.id }
}

output "nat_gateway_ids" {
  description = "NAT gateways, by zone."
  value       = { for zone, nat in aws_nat_gateway.this : zone => nat.id }
}
